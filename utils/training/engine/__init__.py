"""The engine under `train`: one `pytorch_lightning.Trainer` and the callbacks around it. Nothing else imports Lightning."""
