-- What can still be done to the job: nothing after its end, and nothing but waiting once it is cancelled.
local actions = {}
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if condition.type == "Finished" and condition.status == "True" then
    return actions
  end
end
if obj.spec.cancel then
  return actions
end
if obj.spec.suspend then
  actions["resume"] = {iconClass = "fa fa-fw fa-play", displayName = "Resume"}
else
  actions["suspend"] = {iconClass = "fa fa-fw fa-pause", displayName = "Suspend"}
end
actions["cancel"] = {iconClass = "fa fa-fw fa-ban", displayName = "Cancel for good"}
return actions
