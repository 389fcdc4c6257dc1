-- Frees the devices at once and keeps what is finished.
obj.spec.suspend = true
return obj
