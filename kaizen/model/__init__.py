"""What is trained and what it learns from: the learner, whose one forward gives the four terms, teacher and momentum
twin, distillers, methods/ and networks/, and statistics of past classes (statistics.py).

Evaluation, training and the floors above import it; it imports kaizen.data and the floors below.
"""
