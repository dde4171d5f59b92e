"""Knowledge distillation: teachers, feature transfer, and the losses between teachers and student."""
