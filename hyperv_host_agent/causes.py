"""What a task group's error is about."""


def first(group: BaseExceptionGroup[Exception]) -> Exception:
    """The error inside nested groups; of several the first."""
    inner = group.exceptions[0]
    return first(inner) if isinstance(inner, BaseExceptionGroup) else inner
