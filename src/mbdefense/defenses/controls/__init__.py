"""What a defense is held against, and its stages alone, one file each."""
