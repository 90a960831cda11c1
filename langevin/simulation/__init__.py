"""What `langevin.simulate` needs: configuration, facts, text and figure."""
