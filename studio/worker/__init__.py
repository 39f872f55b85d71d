"""The border: a JSON order in, numbered JSON events out. No Django, no database, no queue."""
