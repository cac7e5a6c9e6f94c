"""`triptych advise`: should you split, and how? From measured service times to machines, replicas and the cost of a picture.

service_times.py    what was measured, as a run of the benchmark writes it: the schema, and the reader that refuses the rest
machines.py         what may be rented: prices, memory, speeds, all assumptions (machines.toml)
simulation.py       replicas, queues and calls, event by event
large_pools.py      the same for pools too large for events, in closed form
plans.py            monoliths, a split on one kind of machine, a split on mixed ones
search.py           the cheapest plan of each sort that keeps a 95th percentile
check.py            the simulation against the measured load curve
report.py, plot.py  what is said and drawn
"""
