-- wrk ... -s pipeline.lua URL -- DEPTH: so many requests in one write, and the next ones when all are answered.

function init(arguments)
   local requests = {}
   for number = 1, tonumber(arguments[1]) do
      requests[number] = wrk.format()
   end
   batch = table.concat(requests)
end

function request()
   return batch
end
