"""The program that turns an upload into a prepared dataset, in a process of its own."""
