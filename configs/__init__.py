"""Stage configs."""
