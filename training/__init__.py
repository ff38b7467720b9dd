"""Training: users' images -> weights -> an artifact. Knows files alone; services/ starts it as a child process."""
