"""How close a masked model is to the full one, teacher-forced."""
