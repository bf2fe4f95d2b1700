"""What the tasks of pictures, sound and motion share: fitting, generation over codes, and judges."""
