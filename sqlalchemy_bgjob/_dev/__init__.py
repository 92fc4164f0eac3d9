"""For trying it out: an embedded server and the demo."""
