"""The run directory: where its files lie (places.py), who owns it (directory.py, lock.py), what survives a crash
(checkpoint.py, tensors.py, writer.py), its log (log.py) and requests to stop (stop.py).

Data, model and the floors above import it; it imports kaizen.parallel, kaizen.config and kaizen.errors.
"""
