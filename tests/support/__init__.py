"""The code that test modules share.  A test module imports it from here, and never from another test module."""
