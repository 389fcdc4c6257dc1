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

local conditions = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  conditions[condition.type] = condition
end
local function message(condition)
  if condition.message ~= nil and condition.message ~= "" then
    return condition.message
  end
  return condition.reason
end

-- Somebody told the operator to change nothing.
if conditions.Applying ~= nil and conditions.Applying.status == "False" then
  health.status = "Suspended"
  health.message = message(conditions.Applying)
  return health
end

-- What comes right by itself, with time.
local passing = {
  Progressing = true,
  NoLeader = true,
  WorkersMissing = true,
  GroupUnschedulable = true,
}
local ready = conditions.Ready
if ready == nil then
  return health
end
health.message = message(ready)
if ready.status == "True" then
  health.status = "Healthy"
elseif ready.status == "False" and not passing[ready.reason] then
  health.status = "Degraded"
end
return health
