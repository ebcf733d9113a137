"""Export: what leaves the workshop, checked before it does.

`client.build_client_tflite` turns the client computation into `client.tflite`,
`verify` holds that file to TensorFlow, `task.export_client` writes the signed
task folder of devices and server, `model.export_model` writes a trained model.
`gradients/` holds the gradient rules made of TFLite builtin ops.
"""
