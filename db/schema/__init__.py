"""The schema of a database and the file that holds it, at the start of a process."""
