"""Do adaptive counts come to what was asked on mixes that they were not measured for?"""
