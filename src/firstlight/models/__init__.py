"""What learns: networks, one file each."""
