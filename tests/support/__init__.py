"""What several tests use to make their input and to look at results."""
