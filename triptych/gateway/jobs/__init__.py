"""Jobs: pictures that are ordered now and fetched later, and that outlive every process that works on them.

::

    POST /jobs ──▶ table: a row a job, leased by the gateway at work on it ──▶ GET /jobs/{id}
                   blobs: requests, what the stages have made, pictures

Only `table.py` knows the database, and only `blobs.py` the store; both need the extra `jobs`, and nothing else here does.
"""
