"""Do mirrored pictures keep mirrored tokens? And if not: by their places, or by what they show?"""
