"""What every host speaks: settings, errors, protocol. Standard library and pyzmq only."""
