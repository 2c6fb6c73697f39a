"""What each choice of the recipe is worth: measures, table and plots of this study."""
