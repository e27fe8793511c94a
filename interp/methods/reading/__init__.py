"""Reading: what the model says, and what it holds inside."""
