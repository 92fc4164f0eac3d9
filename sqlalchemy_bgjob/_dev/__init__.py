"""For trying the queue out: an embedded server and the demo."""
