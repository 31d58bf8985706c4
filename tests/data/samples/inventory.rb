require "json"

module Shop
  class Inventory
    attr_reader :items

    def initialize(items = {})
      @items = items
    end

    def add(name, count: 1)
      raise ArgumentError, "count must be positive" unless count.positive?

      @items[name] = @items.fetch(name, 0) + count
      self
    end

    def missing(wanted)
      wanted.select { |name, count| @items.fetch(name, 0) < count }
    end

    def to_json(*args)
      { items: @items, total: @items.values.sum }.to_json(*args)
    end
  end
end
