"""Log lines go to stderr, with their fields, tracebacks included; also as JSON."""

import json

import pytest
import structlog

from twinsite import log


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_line_has_the_program_the_fields_and_the_traceback(capsys, as_json):
    log.configure(program="host", level="info", json=as_json)
    logger = structlog.get_logger()
    logger.debug("hidden")
    secret = "correct horse"
    try:
        int("broken cluster")
    except ValueError:
        logger.exception("transfer failed", vm="web01")
    text = capsys.readouterr().err
    assert "hidden" not in text
    assert secret not in text
    for word in ("transfer failed", "web01", "host", "broken cluster", "Traceback"):
        assert word in text
    if as_json:
        assert json.loads(text)["vm"] == "web01"
