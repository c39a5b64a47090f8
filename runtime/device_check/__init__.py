"""What an installation and a device can say of themselves: `fundus-rt doctor` and `fundus-rt selftest`."""
