"""The report of a study as one HTML page that needs nothing beside itself."""
