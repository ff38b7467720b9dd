"""What ties Ekiben to BentoML: hosting, the model store, models inside a Bento."""
