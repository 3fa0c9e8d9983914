"""What a rehearsal says of the night to come: how long it takes, what fails, what does not fit.

`ollama_provider.batch.rehearse` asks a sample of the rows; these modules make of the answers what it returns.
"""
