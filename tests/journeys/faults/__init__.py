"""What goes wrong around a server: bad input, full disks, damage, kills, stops."""
