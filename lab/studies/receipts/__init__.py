"""Do the kept tokens hold the text of real scanned receipts, never seen in training?"""
