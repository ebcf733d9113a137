"""The ground: what simulation, export, devices and server must agree on."""
