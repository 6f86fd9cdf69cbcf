"""One module per verb: generators that yield frozen reports. They never print."""
