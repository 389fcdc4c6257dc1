-- Stops the job for good: it can not be taken back.
obj.spec.cancel = true
return obj
