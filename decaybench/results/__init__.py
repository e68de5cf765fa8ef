"""The records of finished runs and the folders they are kept in."""
