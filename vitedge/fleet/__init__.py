"""An inventory of boards and artifacts in; the same work done on each board, and its results, out.

``agent.py`` is what runs on a board: one file without dependencies, sent over the connection and never installed.
``connection.py`` opens connections and talks to it, ``fleet.py`` is what the command line calls. What has been done
stands in a ledger here (``ledger.py``), and what is being done stands on the board, so that either end may disappear.
"""
