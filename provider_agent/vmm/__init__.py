"""Where a site's clouds, networks and storage classifications come from."""
