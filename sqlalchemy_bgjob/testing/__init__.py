"""For the tests of applications that use the queue. Nothing here is needed to run it."""
