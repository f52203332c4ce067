"""Reports for people: tables, pictures and model cards."""
