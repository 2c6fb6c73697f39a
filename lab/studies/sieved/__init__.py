"""Does a model that was trained with fewer visual tokens read fewer better?"""
