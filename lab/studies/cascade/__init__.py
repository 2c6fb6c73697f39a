"""Few tokens first, all of them when unsure: fewer tokens under the same promise of keep="auto"?"""
