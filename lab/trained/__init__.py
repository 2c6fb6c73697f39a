"""Studies of trainings: a file of variants, their trainings, and what each selector is worth."""
