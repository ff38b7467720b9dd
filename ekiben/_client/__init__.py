"""What ekiben/client.py is made of: operations, transports and answers, for those who ask a server from outside."""
