"""One step of a recurrent cell, the loop over time, and what compiles them."""
