-- Goes on from what was finished before.
obj.spec.suspend = false
return obj
