-- Zero workers without work are healthy: the condition Ready says so.
local health = {status = "Progressing", message = "Waiting for the operator"}
if obj.status == nil then
  return health
end
if obj.status.observedGeneration ~= nil and obj.metadata.generation ~= nil
    and obj.status.observedGeneration < obj.metadata.generation then
  health.message = "Waiting for the operator to see the last change"
  return health
end

-- What comes right by itself, with time.
local passing = {
  Progressing = true,
  NoLeader = true,
  WorkersMissing = true,
  GroupUnschedulable = true,
}
for _, condition in ipairs(obj.status.conditions or {}) do
  if condition.type == "Ready" then
    if condition.message ~= nil and condition.message ~= "" then
      health.message = condition.message
    else
      health.message = condition.reason
    end
    if condition.status == "True" then
      health.status = "Healthy"
    elseif condition.status == "False" and not passing[condition.reason] then
      health.status = "Degraded"
    end
    return health
  end
end
return health
